"""Walk and replace modules, and trace what flows where: everything that touches a model's structure.

Rules that every change keeps: the user's model object survives, shared modules stay shared, hooks and flags
move with the layer they were put on, and a call that fails has changed nothing.
"""
