"""What tests need to stand in for the world around the proxy. Shipped and typed; nothing but tests imports it."""
