"""What the operator and the trainer share: the resource, the stage contract, records and storage."""
