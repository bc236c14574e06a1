"""What each tensor of a module gets: its name, its draws, and where its values come from."""
