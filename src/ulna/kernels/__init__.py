"""Operations worth a kernel of their own, each beside what defines it. They know torch and nothing of ulna."""
