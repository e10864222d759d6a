"""Random small networks from a grammar, and what every public call owes them: right, or refused with a reason."""
