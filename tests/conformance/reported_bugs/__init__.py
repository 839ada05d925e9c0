"""Wrong answers, most of them silent, that users of other compilers reported, as small programs of our own.

The docstring of each program begins with the report, as `owner/repository#number` on GitHub (an issue, a pull request,
or a comment below one), and tells in a sentence what went wrong there. One module a topic.
"""
