"""One policy for many clients: a core that plans, and doors that speak openpi's, UMI's and our own messages."""
