"""`tandem doctor`: looks at a cluster (`facts`, and `needs` of a manifest), judges it (`checks`, pure), tells."""
