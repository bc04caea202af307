"""`bellwire push`: one push to one device, and what its answer means. Sending is `push/channels`."""
