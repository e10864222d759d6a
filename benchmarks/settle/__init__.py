"""How trained attention is best brought to constants: ways to settle, each beside its control."""
