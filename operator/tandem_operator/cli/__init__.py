"""The command line: `tandem run | status | report | validate | version`."""
