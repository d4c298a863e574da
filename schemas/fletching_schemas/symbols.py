"""placeholder"""
SUFFIXES: tuple[str, ...] = ()


def normalise_symbol(text: str, notation: str = "equity") -> str:
    """placeholder"""
    return text
