"""`tandem ui`: one run as a page that follows it. Read-only, on the loopback interface, for whoever holds the token."""
