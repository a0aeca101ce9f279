output "address" {
  description = "The floating IP."
  value       = local.address
}

output "server_id" {
  description = "Nova's id of the machine: its console log has the SSH host keys."
  value       = openstack_compute_instance_v2.server.id
}

output "port_id" {
  description = "Neutron's id of the machine's port."
  value       = openstack_networking_port_v2.server.id
}

output "data_volume_id" {
  description = "PostgreSQL's volume; empty where it is on the machine's disk."
  value       = local.data_volume_id
}
