"""The command that trains with all sixteen techniques, and what it leaves behind."""
