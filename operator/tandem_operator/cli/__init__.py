"""The command line: what `tandem` does on this machine, and in `cluster` what it does on a cluster."""
