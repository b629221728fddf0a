"""The data plane: thin Ray shells, each beside its pure core."""
