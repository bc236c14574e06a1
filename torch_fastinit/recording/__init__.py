"""What a constructor did: deferred tensors, the tape that their operations are written into, and its replay."""
