"""The admin port: health, status, metrics, drain. It holds no rows and no tokens."""
