"""APNs: credentials, connections, pushes, what Apple's answers mean."""
