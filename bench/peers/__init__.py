"""What Bellwire is measured beside: other stacks in a call; libraries and databases under the same load."""
