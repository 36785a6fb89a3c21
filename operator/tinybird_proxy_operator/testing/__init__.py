"""Doubles for tests: they ship, they are typed, and nothing but tests imports them."""
