"""One recorded run of a model as a graph: module calls, values, operations by schema, and queries on them.

``trace`` records; ``graph`` holds what was recorded; ``channels`` and ``patterns`` follow the channel axis; ``unseen``
says what the run did not reach.
"""
