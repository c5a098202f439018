"""A small hybrid GDN language model that is defined, trained and kept in this repository."""
