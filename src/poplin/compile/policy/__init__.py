"""Policy: from cluster objects to verdicts, and to the table that has the kernel give the same ones."""
