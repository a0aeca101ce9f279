output "address" {
  description = "The floating IP."
  value       = local.address
}

output "private_address" {
  description = "The address within the lab's network."
  value       = openstack_networking_port_v2.server.all_fixed_ips[0]
}

output "server_id" {
  description = "Nova's id of the machine: its console log has the SSH host keys."
  value       = openstack_compute_instance_v2.server.id
}

output "data_volume_id" {
  description = "PostgreSQL's volume; empty where it is on the machine's disk."
  value       = local.data_volume_id
}
