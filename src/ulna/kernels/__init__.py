"""Operations that torch has no name for: each with a reference that defines it. They know torch and nothing of ulna."""
