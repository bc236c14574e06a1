"""Functions of torch and of Python that are replaced while a tape lives."""
