"""This zoo beside the peer a user would otherwise pick: same data, same run."""
