"""The admin port: health, status, metrics, drain, dead letters. It shows no token, and rows only to who may act."""
