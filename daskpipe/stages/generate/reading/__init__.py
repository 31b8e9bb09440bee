"""Read structures and labels from the user's own files."""
