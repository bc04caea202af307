"""Who may open a door, and when: codes, lock-outs, whom to believe. The pins are `hardware/panel`."""
