"""A study before anybody is asked: what noise its promise needs, what that leaves of the signal, how many patients it takes."""
