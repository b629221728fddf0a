"""Load: people and agents ask while files come in. `make load` runs it; `run` says what is measured."""
