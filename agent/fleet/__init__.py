"""This device in its fleet: layers heard, settings in force, health reported, commands done. No calls."""
