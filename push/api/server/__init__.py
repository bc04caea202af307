"""What stands before the routes: connections, heads, bodies, who asks first, counting. No route."""
