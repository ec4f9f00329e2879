"""PushT-M: PushT with another goal pose in every episode, which only the picture shows."""
