"""The API: HTTP/1.1 on a Unix socket. Roles come from the kernel, never from the request."""
