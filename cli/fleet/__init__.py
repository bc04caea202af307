"""`bellwire fleet`: an operator's commands, and how they are shown. What a layer may say stands in
`config/fleet`."""
