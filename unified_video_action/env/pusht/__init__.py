"""PushT: a disc pushes a T onto its goal pose on a table of 512 x 512 pixels."""
