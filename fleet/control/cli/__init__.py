"""The command line of the controller. What a command needs, it loads itself.

Exit codes: 10 not all succeeded; 11 no last word in time; 12 a rollout is paused; 13 it was
aborted.
"""

NOT_ALL, NO_WORD, PAUSED, ABORTED = 10, 11, 12, 13
