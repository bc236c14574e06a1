"""What the tensors of a model are like, against what their initialisers promise."""
