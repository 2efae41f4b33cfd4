"""The API on a real socket, in front of a service in memory."""
