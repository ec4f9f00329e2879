"""Why a request gets no plan."""

from unified_video_action.messages import shown

BAD_REQUEST = "bad_request"  # the message is not what this policy reads; sending it again does not help
BUSY = "busy"  # as many clients as are allowed are connected already
NO_EPISODE = "no_episode"  # the server does not know this client (any more): reset first
POLICY_FAILED = "policy_failed"  # the server's fault; it may be tried again
WRONG_KEY = "wrong_key"
SUPERSEDED = "superseded"  # the same client asked anew before this was begun
STOPPING = "stopping"

MOST_CHARACTERS = 1000  # of an error that is sent


class Refused(Exception):
    """An answer without a plan; the text, one line of bounded length, is for the client's user and for the log."""

    def __init__(self, code: str, text: str) -> None:
        self.code, self.text = code, shown(text, MOST_CHARACTERS)
        super().__init__(f"{code}: {self.text}")
