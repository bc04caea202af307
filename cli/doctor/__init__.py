"""`bellwire doctor`: looks at relay, devices, push, sound and credentials, and says what to mend.
It changes nothing."""
