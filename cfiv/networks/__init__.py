"""Feature networks: the defaults, a user's own made ours, those of several members side by side. They know no objective."""
