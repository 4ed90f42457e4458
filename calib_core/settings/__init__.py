"""How configs are checked, and how they become flags and component parameters."""
