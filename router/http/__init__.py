"""HTTP: the server, its limits, the door, the application and what it says of itself."""
