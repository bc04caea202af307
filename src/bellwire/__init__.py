"""Bellwire: rings intercoms, desk phones, mobiles and browsers, and connects the call."""
