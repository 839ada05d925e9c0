class Comparison:
    pass


def compare_profiles(a, b):
    return Comparison()
