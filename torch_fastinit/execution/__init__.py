"""Making a plan so: memory, fills, replays, and tensors put in place."""
