"""Who is let in: signatures, tickets, slots."""
