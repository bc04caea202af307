"""Settings of relay and agent, and the layers by which a fleet is configured; and what all folders
need alike: private files, and waiting."""
