"""The verdict on a kernel of your own: is it correct, is it faster, and what limits it."""
