"""Notebook 12: fewer bytes in a decode step than one read and one write of the state."""
